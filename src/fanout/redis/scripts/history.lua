-- A conversation's turns: a hash with the parts of each turn under its message, and their order by
-- the time (microseconds) at which they were first stored. `hl` lists the conversations by their
-- last turn, for paging through them. `hx` has `message conversation` of turns that fell out of the
-- bounds while their outcome is still there, for `forget`: so a conversation stays that long at least.
local HISTORY_KEPT = math.max(HISTORY_TTL, DEDUP_TTL)

local function put_turn(conversation, message, question, answer, status)
  local turns, order = P .. 'h:' .. conversation, P .. 'ho:' .. conversation
  if redis.call('ZSCORE', order, message) then
    redis.call('HSET', turns, 'a:' .. message, answer, 's:' .. message, status)
    if question then
      redis.call('HSETNX', turns, 'q:' .. message, question)
    end
    return
  end
  local at = now_us
  local last = redis.call('ZREVRANGE', order, 0, 0, 'WITHSCORES')
  if last[2] and tonumber(last[2]) >= at then
    at = tonumber(last[2]) + 1
  end
  redis.call('ZADD', order, int(at), message)
  redis.call('HSET', turns, 'a:' .. message, answer, 's:' .. message, status)
  if question then
    redis.call('HSET', turns, 'q:' .. message, question)
  end

  local gone = redis.call('ZRANGEBYSCORE', order, '-inf', int(now_us - HISTORY_TTL * 1000))
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
    redis.call('HDEL', turns, 'q:' .. old, 'a:' .. old, 's:' .. old)
  end

  redis.call('PEXPIRE', turns, int(HISTORY_KEPT))
  redis.call('PEXPIRE', order, int(HISTORY_KEPT))
  redis.call('ZADD', P .. 'hl', int(now), conversation)
  redis.call('ZREMRANGEBYSCORE', P .. 'hl', '-inf', int(now - HISTORY_KEPT))
  redis.call('PEXPIRE', P .. 'hl', int(HISTORY_KEPT))
end

-- An ending in five arguments from ARGV[i]: frame, whether there is a question, question, answer,
-- status.
local function store_ending(conversation, message, i)
  keep_outcome(message, ARGV[i])
  put_turn(conversation, message, ARGV[i + 1] == '1' and ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
end
