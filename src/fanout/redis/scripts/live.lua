-- ARGV: new counter's id, message, owner, attempt, index (empty: only the lease), text, `delta` frame
local message = ARGV[2]
if redis.call('EXISTS', P .. 'o:' .. message, P .. 'c:' .. message) > 0 then
  local o = redis.call('HMGET', P .. 'o:' .. message, 'f', 'p')
  if o[1] or o[2] then
    return { 'fenced' }
  end
  return { 'cancelled' }
end
local key = P .. 'a:' .. message
local answer = redis.call('HMGET', key, 'owner', 'attempt', 'next', 'until')
if not answer[1] then
  return { 'lost' }
end
if answer[1] ~= ARGV[3] or answer[2] ~= ARGV[4] then
  return { 'fenced' }
end

if ARGV[5] ~= answer[3] then
  redis.call('HSET', key, 'until', int(now + LEASE))
  touch_answer(message)
  if ARGV[5] == '' then
    return { 'written' }
  end
  return { 'expected', answer[3] }
end
local index = tonumber(answer[3])
redis.call('HSET', key, 'until', int(now + LEASE), 'next', int(index + 1))
redis.call('APPEND', P .. 't:' .. message, ARGV[6])
-- The expiry was renewed when the lease was last, by `begin` or without text.
if index == 0 and now - (tonumber(answer[4]) - LEASE) <= part(PENDING_TTL) then
  redis.call('PEXPIRE', P .. 't:' .. message, int(PENDING_TTL))
elseif index % 32 == 0 then
  touch_answer(message)
end
publish(LIVE, ARGV[7], ARGV[1])
return { 'written' }
