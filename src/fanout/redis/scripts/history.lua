-- A conversation's turns: a hash with each turn under its message (turn.lua), and their order by
-- the time (microseconds) at which they were first stored, or at which the log had their ends where they
-- were lost since. `hl` lists the conversations by their last turn, for paging through them. `hx` has
-- `message conversation` of turns that fell out of the bounds while their outcome is still there, for
-- `forget`: so a conversation stays that long at least.
local HISTORY_KEPT = math.max(HISTORY_TTL, DEDUP_TTL)

local function turn(question, answer, status)
  if question then
    return status .. #question .. ':' .. question .. answer
  end
  return status .. '-:' .. answer
end

-- Returns the states before and, as its time, after, where a turn was added and nothing else changed.
-- `ended` (microseconds, the log's clock) is given where a turn may come back to a server that lost it:
-- then its place is before what was stored meanwhile.
local function put_turn(conversation, message, question, answer, status, ended)
  local turns, order = P .. 'h:' .. conversation, P .. 'ho:' .. conversation
  local at = math.min(ended or now_us, now_us)
  local last = redis.call('ZREVRANGE', order, 0, 0, 'WITHSCORES')
  local older = false
  if last[2] and tonumber(last[2]) >= at then
    older = ended ~= nil
    at = older and at or tonumber(last[2]) + 1
  end
  if last[1] == message or redis.call('ZADD', order, 'NX', int(at), message) == 0 then
    -- A worker that found its end lost has answered it again, later than it ended.
    if ended and tonumber(redis.call('ZSCORE', order, message)) > ended then
      redis.call('ZADD', order, int(ended), message)
      last = redis.call('ZREVRANGE', order, 0, 0)
    end
    -- The conversation's state (turn.lua) is another one with this.
    redis.call('ZINCRBY', order, 1, last[1])
    local before = redis.call('HGET', turns, message) or ''
    local length, from = string.match(before, '^%a(%d+):()')
    if length then
      question = string.sub(before, from, from + length - 1)
    end
    redis.call('HSET', turns, message, turn(question, answer, status))
    return
  end
  if older then
    redis.call('ZINCRBY', order, 1, last[1])
  end
  redis.call('HSET', turns, message, turn(question, answer, status))
  redis.call('ZADD', P .. 'hl', int(now), conversation)

  -- Whoever reads passes over what is too old, so that need not go at once.
  local due = is_due(last[2] and tonumber(last[2]) / 1000, HISTORY_KEPT)
  local gone = {}
  if due then
    gone = redis.call('ZRANGEBYSCORE', order, '-inf', int(now_us - HISTORY_TTL * 1000))
    renew(turns, HISTORY_KEPT)
    renew(order, HISTORY_KEPT)
    redis.call('ZREMRANGEBYSCORE', P .. 'hl', '-inf', int(now - HISTORY_KEPT))
    renew(P .. 'hl', HISTORY_KEPT)
  end
  local excess = redis.call('ZCARD', order) - HISTORY_TURNS
  if excess > #gone then
    gone = redis.call('ZRANGE', order, 0, excess - 1)
  end
  for _, old in ipairs(gone) do
    redis.call('ZREM', order, old)
    if redis.call('EXISTS', P .. 'o:' .. old) == 1 then
      redis.call('ZADD', P .. 'hx', int(now), old .. ' ' .. conversation)
      redis.call('ZREMRANGEBYSCORE', P .. 'hx', '-inf', int(now - DEDUP_TTL))
      redis.call('PEXPIRE', P .. 'hx', int(DEDUP_TTL))
    end
    redis.call('HDEL', turns, old)
  end
  -- With a bound that a context could reach, who has the turns in mind can't tell what went.
  if not older and (#gone == 0 or MANY_TURNS) then
    return last[1] and last[1] .. ' ' .. last[2] or '', int(at)
  end
end

-- An ending in five arguments from ARGV[i]: frame, whether there is a question, question, answer,
-- status.
local function store_ending(conversation, message, i)
  local key = P .. 'o:' .. message
  redis.call('HSET', key, 'f', ARGV[i])
  redis.call('PEXPIRE', key, int(DEDUP_TTL))
  return put_turn(conversation, message, ARGV[i + 1] == '1' and ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
end
