-- Writing of a conversation's turns.
--   h:CONVERSATION    turns by message (turn.lua)
--   ho:CONVERSATION   messages by the time (microseconds) at which their turns were first stored,
--                     or at which the log received their outcomes if they were lost since
--   hl                conversations by the time of their newest turn
--   hx                `message conversation` of turns that were trimmed while their outcome still
--                     exists, for `forget`. A conversation therefore exists at least as long.
local CONVERSATION_TTL = math.max(HISTORY_TTL, DEDUP_TTL)

local function encode_turn(question, answer, status)
  if question then
    return status .. #question .. ':' .. question .. answer
  end
  return status .. '-:' .. answer
end

-- Writes the turn of a message: over its existing turn, whose question stays, or as the newest one.
-- Where the append is the only change to the history, returns the version before and the time of
-- the appended turn. `logged_us` (microseconds, the log's clock) is set where the turn may return
-- to a server that lost it: it is inserted at this time, before turns that were stored later.
local function put_turn(conversation, message, question, answer, status, logged_us)
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
    -- A worker that found its outcome lost has answered the message again, after the outcome was
    -- logged: the turn moves back to the time of the log.
    if logged_us and tonumber(redis.call('ZSCORE', order_key, message)) > logged_us then
      redis.call('ZADD', order_key, int(logged_us), message)
      last_message = redis.call('ZREVRANGE', order_key, 0, 0)[1]
    end
    -- Changes the history's version (turn.lua).
    redis.call('ZINCRBY', order_key, 1, last_message)
    local existing = redis.call('HGET', turns_key, message) or ''
    local length, from = string.match(existing, '^%a(%d+):()')
    if length then
      question = string.sub(existing, from, from + length - 1)
    end
    redis.call('HSET', turns_key, message, encode_turn(question, answer, status))
    return
  end
  if is_inserted then
    redis.call('ZINCRBY', order_key, 1, last_message)
  end
  redis.call('HSET', turns_key, message, encode_turn(question, answer, status))
  redis.call('ZADD', PREFIX .. 'hl', int(now), conversation)

  -- Readers skip expired turns, so these are removed only when the expiry is renewed.
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
  -- Where a context can reach the bound, a worker that has the turns cached can't tell which of
  -- them were trimmed.
  if not is_inserted and (#trimmed == 0 or IS_LARGE_HISTORY) then
    return last[1] and last[1] .. ' ' .. last[2] or '', int(at)
  end
end

-- Stores an outcome that begins at ARGV[i]: frame, 1 with a question, question, answer, status.
local function store_outcome(conversation, message, i)
  local key = outcome_key(message)
  redis.call('HSET', key, 'f', ARGV[i])
  redis.call('PEXPIRE', key, int(DEDUP_TTL))
  local question = ARGV[i + 1] == '1' and ARGV[i + 2]
  return put_turn(conversation, message, question, ARGV[i + 3], ARGV[i + 4])
end
