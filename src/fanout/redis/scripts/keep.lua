-- ARGV: message, conversation, owner, attempt, the ending (5), tokens, the cancelled ending (5) where
-- it was asked for
local message = ARGV[1]
local frame, position, forgotten = outcome(message)
if forgotten then
  if not ARGV[11] then
    return { 'cancelled' }
  end
  return { 'ended', ARGV[11], position or '' }
end
if frame then
  return { 'ended', frame, position or '' }
end
local answer = redis.call('HMGET', P .. 'a:' .. message, 'owner', 'attempt')
if answer[1] and (answer[1] ~= ARGV[3] or answer[2] ~= ARGV[4]) then
  return { 'fenced' }
end
local ending = 5
if is_cancelled(message) then
  ending = 11
  if not ARGV[ending] then
    return { 'cancelled' }
  end
end
-- The text in flight stays until the delivery: whoever connects before it still gets a snapshot.
local before, at = store_ending(ARGV[2], message, ending)
count_tokens(ARGV[10])
if ending == 5 then
  return { 'kept', before, at }
end
return { 'ended', ARGV[ending], '' }
