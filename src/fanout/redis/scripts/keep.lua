-- ARGV: message, conversation, owner, attempt, outcome (5 arguments), tokens, the cancelled outcome
-- (5 arguments) where an earlier run requested it
local OUTCOME, CANCELLED_OUTCOME = 5, 11
local message, conversation, owner, attempt = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local frame, position, is_forgotten = outcome(message)
if is_forgotten then
  if not ARGV[CANCELLED_OUTCOME] then
    return { 'cancelled' }
  end
  return { 'ended', ARGV[CANCELLED_OUTCOME], position or '' }
end
if frame then
  return { 'ended', frame, position or '' }
end
local answer = redis.call('HMGET', answer_key(message), 'owner', 'attempt')
if answer[1] and (answer[1] ~= owner or answer[2] ~= attempt) then
  return { 'fenced' }
end
local first = OUTCOME
if is_cancelled(message) then
  first = CANCELLED_OUTCOME
  if not ARGV[first] then
    return { 'cancelled' }
  end
end
-- The answer in flight stays until the delivery, so that a client that connects before it still
-- gets a snapshot.
local version_before, at = store_outcome(conversation, message, first)
count_tokens(ARGV[10])
if first == OUTCOME then
  return { 'kept', version_before, at }
end
return { 'ended', ARGV[first], '' }
