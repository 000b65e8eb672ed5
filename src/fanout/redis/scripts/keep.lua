-- `keep`. ARGV: message, conversation, owner, attempt, outcome (6 arguments), number of model
-- tokens, the cancelled outcome (6 arguments) if an earlier run returned `cancelled`

-- Index in ARGV of the first argument of each outcome.
local OUTCOME, CANCELLED_OUTCOME = 5, 12
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
-- The answer in flight is not removed before its outcome is delivered, so that a client that
-- connects until then still gets a snapshot.
local version_before, at = store_outcome(conversation, message, first)
count_tokens(ARGV[11])
if first == OUTCOME then
  return { 'kept', version_before, at }
end
return { 'ended', ARGV[first], '' }
