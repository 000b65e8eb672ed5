-- ARGV: new counter's id, message, owner, attempt, index (empty: only the lease), text, `delta` frame
local message = ARGV[2]
if redis.call('EXISTS', P .. 'o:' .. message) == 1 then
  local o = redis.call('HMGET', P .. 'o:' .. message, 'x', 'p')
  if o[1] and not o[2] then
    return { 'cancelled' }
  end
  return { 'fenced' }
end
if is_cancelled(message) then
  return { 'cancelled' }
end
local key = P .. 'a:' .. message
local answer = redis.call('HMGET', key, 'owner', 'attempt', 'next')
if not answer[1] then
  return { 'lost' }
end
if answer[1] ~= ARGV[3] or answer[2] ~= ARGV[4] then
  return { 'fenced' }
end

redis.call('HSET', key, 'until', int(now + LEASE))
if ARGV[5] == '' then
  touch_answer(message)
  return { 'written' }
end
if answer[3] ~= ARGV[5] then
  touch_answer(message)
  return { 'expected', answer[3] }
end
redis.call('APPEND', P .. 't:' .. message, ARGV[6])
redis.call('HINCRBY', key, 'next', 1)
touch_answer(message)
publish(LIVE, ARGV[7], ARGV[1])
return { 'written' }
