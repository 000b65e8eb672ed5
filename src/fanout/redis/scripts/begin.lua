-- ARGV: new counter's id, message, client's id, conversation, owner, attempt had, `restarted`
-- frame, ms for which leases count that ran out, turns of the history at most (0: none are wanted), age
-- of the newest (ms), its mark where the caller has them, the cancelled ending (5) where it was asked for
local LONGEST_AWAY = 60000
local message, owner, had = ARGV[2], ARGV[5], tonumber(ARGV[6])
local frame, position, forgotten = outcome(message)
if frame then
  return { 'ended', frame, position or '' }
end
if forgotten or is_cancelled(message) then
  if not ARGV[12] then
    return { 'cancelled' }
  end
  if not forgotten then
    store_ending(ARGV[4], message, 12)
  end
  return { 'ended', ARGV[12], position or '' }
end

local key = P .. 'a:' .. message
local answer = redis.call('HMGET', key, 'owner', 'until', 'attempt')
local attempt = tonumber(answer[3] or '0')

-- How many owners there have been, this one included, of an answer that is there already.
local function taking()
  if redis.call('HSETNX', key, 'by:' .. owner, '1') == 1 then
    return redis.call('HINCRBY', key, 'taking', 1)
  end
  return redis.call('HGET', key, 'taking')
end

if answer[1] and answer[1] ~= owner then
  local lease = tonumber(answer[2])
  -- While this server was away nobody could renew it. Not for ever: the caller may find it away again
  -- and again, and the owner may be dead.
  lease = math.max(lease, math.min(now + tonumber(ARGV[8]), lease + LONGEST_AWAY))
  if lease > now then
    return { 'busy', int(lease - now) }
  end
end

-- What came earlier in the conversation, unless the caller has it.
local function begun(number, takings)
  local limit = tonumber(ARGV[9])
  if limit == 0 then
    return { 'attempt', int(number), int(now), takings }
  end
  local mark = history_mark(ARGV[4])
  if mark == ARGV[11] then
    return { 'attempt', int(number), int(now), takings, mark }
  end
  return { 'attempt', int(number), int(now), takings, mark, context(ARGV[4], limit, ARGV[10]) }
end

if answer[1] == owner and attempt > had then
  -- A repeat of this call: the text that was written since stays.
  redis.call('HSET', key, 'until', int(now + LEASE))
  touch_answer(message)
  return begun(attempt, int(taking()))
end

attempt = math.max(attempt, had) + 1
local takings = '1'
if answer[3] then
  redis.call('DEL', P .. 't:' .. message)
  takings = int(taking())
  redis.call('HSET', key, 'owner', owner, 'until', int(now + LEASE), 'attempt', int(attempt), 'next', '0')
else
  redis.call('HSET', key, 'id', ARGV[3], 'conversation', ARGV[4], 'by:' .. owner, '1', 'taking', '1',
    'owner', owner, 'until', int(now + LEASE), 'attempt', int(attempt), 'next', '0')
end
redis.call('SADD', P .. 'as', message)
renew(key, PENDING_TTL)
renew(P .. 'as', PENDING_TTL)
if attempt > 1 then
  publish(LIVE, ARGV[7], ARGV[1], ',"attempt":' .. int(attempt))
end
return begun(attempt, takings)
