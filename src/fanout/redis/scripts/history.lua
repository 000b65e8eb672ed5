-- Writes the turns of conversations. Shared by the scripts that store outcomes.
--
--   h:CONVERSATION    turns by message (turn.lua)
--   ho:CONVERSATION   messages by the time (microseconds) of their turns: when the turn was first
--                     stored or, for a turn that was lost and stored again, when the log received
--                     the outcome
--   hl                conversations by the time (ms) at which a turn was last added
--   hx                `message conversation` of turns that were trimmed while their outcome exists,
--                     so that `forget` finds these outcomes
--
-- `forget` finds all other outcomes by their turns. The keys of a conversation therefore exist at
-- least as long as its outcomes.
local CONVERSATION_TTL = math.max(HISTORY_TTL, DEDUP_TTL)

-- Encodes a turn as one value (turn.lua). `question` is false for a turn without a question, and
-- `parts` is empty for a turn without parts.
local function encode_turn(question, answer, status, parts)
  local head = status .. (question and #question or '-')
  if parts ~= '' then
    head = head .. ',' .. #answer
  end
  return head .. ':' .. (question or '') .. answer .. parts
end

-- Writes the turn of a message. If the message has a turn, replaces its answer, status and parts
-- and keeps its question; otherwise appends the turn as the newest turn. If it appends the turn and
-- changes no other turn that a worker may have cached, returns the version before the append and
-- the time of the turn; otherwise nothing.
-- With `logged_us` (microseconds by the log's clock, from a relay), a turn that the server may have
-- lost is inserted at this time, before turns that were stored later.
local function put_turn(conversation, message, question, answer, status, parts, logged_us)
  local turns_key, order_key = PREFIX .. 'h:' .. conversation, PREFIX .. 'ho:' .. conversation
  local at = math.min(logged_us or now_us, now_us)
  local last = redis.call('ZREVRANGE', order_key, 0, 0, 'WITHSCORES')
  local last_message, last_at = last[1], last[2]
  local is_inserted = false
  if last_at and tonumber(last_at) >= at then
    is_inserted = logged_us ~= nil
    at = is_inserted and at or tonumber(last_at) + 1
  end
  if last_message == message or redis.call('ZADD', order_key, 'NX', int(at), message) == 0 then
    -- The turn was stored after the log received this outcome: the server had lost the outcome, and
    -- a worker answered the message again. The turn moves back to the time of the log.
    if logged_us and tonumber(redis.call('ZSCORE', order_key, message)) > logged_us then
      redis.call('ZADD', order_key, int(logged_us), message)
      last_message = redis.call('ZREVRANGE', order_key, 0, 0)[1]
    end
    -- Advance the newest turn's time by one microsecond, which changes the history's version
    -- (turn.lua).
    redis.call('ZINCRBY', order_key, 1, last_message)
    local existing = redis.call('HGET', turns_key, message) or ''
    local length, from = string.match(existing, '^%a(%d+),?%d*:()')
    if length then
      question = string.sub(existing, from, from + length - 1)
    end
    redis.call('HSET', turns_key, message, encode_turn(question, answer, status, parts))
    return
  end
  if is_inserted then
    -- The newest turn stays the newest, so its time is advanced to change the history's version.
    redis.call('ZINCRBY', order_key, 1, last_message)
  end
  redis.call('HSET', turns_key, message, encode_turn(question, answer, status, parts))
  redis.call('ZADD', PREFIX .. 'hl', int(now), conversation)

  -- Expired turns are removed only when the expiry is renewed, because readers skip them anyway.
  local trimmed = {}
  if needs_renewal(last_at and tonumber(last_at) / 1000, CONVERSATION_TTL) then
    trimmed = redis.call('ZRANGEBYSCORE', order_key, '-inf', int(now_us - HISTORY_TTL * 1000))
    renew_expiry(turns_key, CONVERSATION_TTL)
    renew_expiry(order_key, CONVERSATION_TTL)
    redis.call('ZREMRANGEBYSCORE', PREFIX .. 'hl', '-inf', int(now - CONVERSATION_TTL))
    renew_expiry(PREFIX .. 'hl', CONVERSATION_TTL)
  end
  local excess = redis.call('ZCARD', order_key) - HISTORY_TURNS
  if excess > #trimmed then
    trimmed = redis.call('ZRANGE', order_key, 0, excess - 1)
  end
  for _, old in ipairs(trimmed) do
    redis.call('ZREM', order_key, old)
    if redis.call('EXISTS', outcome_key(old)) == 1 then
      redis.call('ZADD', PREFIX .. 'hx', int(now), old .. ' ' .. conversation)
      redis.call('ZREMRANGEBYSCORE', PREFIX .. 'hx', '-inf', int(now - DEDUP_TTL))
      redis.call('PEXPIRE', PREFIX .. 'hx', int(DEDUP_TTL))
    end
    redis.call('HDEL', turns_key, old)
  end
  -- Nothing is returned if a trimmed turn may be part of a worker's cached context, because the
  -- worker can't know which turns were trimmed.
  if not is_inserted and (#trimmed == 0 or IS_LARGE_HISTORY) then
    return last[1] and last[1] .. ' ' .. last[2] or '', int(at)
  end
end

-- Stores the outcome whose six arguments begin at ARGV[i]: frame, 1 if the turn has a question,
-- question, answer, status, parts (or empty). Returns the same as `put_turn`.
local function store_outcome(conversation, message, i)
  local key = outcome_key(message)
  redis.call('HSET', key, 'f', ARGV[i])
  redis.call('PEXPIRE', key, int(DEDUP_TTL))
  local question = ARGV[i + 1] == '1' and ARGV[i + 2]
  return put_turn(conversation, message, question, ARGV[i + 3], ARGV[i + 4], ARGV[i + 5])
end
