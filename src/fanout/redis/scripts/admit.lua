-- `admit`. ARGV: message, its pending entry (JSON), its conversation
local message, entry, conversation = ARGV[1], ARGV[2], ARGV[3]

local function new()
  return { 'new', int(redis.call('PUBSUB', NUMSUB_COMMAND, LIVE_CHANNEL)[2]) }
end

local frame, position, is_forgotten = outcome(message)
if is_forgotten then
  -- Without a position no outcome was delivered, so the message is admitted: once the log has it, a
  -- worker appends the cancelled outcome. The message is not recorded as pending, because its
  -- content was forgotten.
  return position and { 'forgotten' } or new()
end
if position then
  return { 'delivered', frame, position }
end
if frame then
  return { 'kept' }
end
if not is_pending(message) then
  local refusal = check_limits(conversation)
  if refusal then
    return refusal
  end
  redis.call('HSET', PENDING_KEY, message, int(now_us) .. ' ' .. entry)
  redis.call('PEXPIRE', PENDING_KEY, int(PENDING_TTL))
end
return new()
