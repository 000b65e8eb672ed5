-- `open_part`. ARGV: id for a new counter, message, owner, attempt, number of the part, the element
-- that opens the part, `delta` frame
local message, part = ARGV[2], tonumber(ARGV[5])
local answer, refusal = writable_answer(message, ARGV[3], ARGV[4])
if not answer then
  return { refusal }
end
local key = stream_key(message, answer.stream)
if part < answer.parts then
  -- This call is a repeat, unless the pieces have been lost.
  local count = redis.call('LLEN', key)
  if count == 0 then
    return { 'lost' }
  end
  return { 'confirmed', count }
end
if part > answer.parts then
  return { 'lost' }
end
redis.call('HSET', answer_key(message), 'parts', int(part + 1))
local count = redis.call('RPUSH', key, ARGV[6])
if count == 1 then
  renew_expiry(key, PENDING_TTL)
end
publish(LIVE_CHANNEL, ARGV[7], ARGV[1])
return { 'confirmed', count }
