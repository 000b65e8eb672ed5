-- `live`. ARGV: id for a new counter, message, owner, attempt, index of the delta (empty: only
-- renew the lease), text of the delta, `delta` frame
local message, owner, attempt, index = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if redis.call('EXISTS', outcome_key(message), PREFIX .. 'c:' .. message) > 0 then
  local frame, position = outcome(message)
  if frame or position then
    return { 'fenced' }
  end
  return { 'cancelled' }
end
local key = answer_key(message)
local answer = redis.call('HMGET', key, 'owner', 'attempt', 'next', 'until')
local next_index, lease_until = answer[3], answer[4]
if not answer[1] then
  return { 'lost' }
end
if answer[1] ~= owner or answer[2] ~= attempt then
  return { 'fenced' }
end

if index ~= next_index then
  redis.call('HSET', key, 'until', int(now + LEASE))
  renew_answer(message)
  if index == '' then
    return { 'written' }
  end
  return { 'expected', next_index }
end
local number = tonumber(index)
redis.call('HSET', key, 'until', int(now + LEASE), 'next', int(number + 1))
redis.call('APPEND', text_key(message), ARGV[6])
-- The first delta creates the text's key, which has no expiry yet. If `begin` or a call without
-- text renewed the answer's expiry less than one interval ago, only the text's expiry has to be
-- set. After that, the expiry of all keys is renewed with every 32nd delta and with every call
-- without text.
local renewed_at = tonumber(lease_until) - LEASE
if number == 0 and now - renewed_at <= renewal_interval(PENDING_TTL) then
  redis.call('PEXPIRE', text_key(message), int(PENDING_TTL))
elseif number % 32 == 0 then
  renew_answer(message)
end
publish(LIVE_CHANNEL, ARGV[7], ARGV[1])
return { 'written' }
