-- ARGV: message, its entry in pending (JSON), its conversation
local function new()
  return { 'new', int(redis.call('PUBSUB', NUMSUB, LIVE)[2]) }
end

local frame, position, forgotten = outcome(ARGV[1])
if forgotten then
  -- Without a position nobody has been told yet: a worker will say that it is cancelled, once the
  -- log has it. What was written is not noted again.
  return position and { 'forgotten' } or new()
end
if position then
  return { 'delivered', frame, position }
end
if frame then
  return { 'kept' }
end
if not is_pending(ARGV[1]) then
  local over = over_limit(ARGV[3])
  if over then
    return over
  end
  redis.call('HSET', PENDING_KEY, ARGV[1], int(now_us) .. ' ' .. ARGV[2])
  redis.call('PEXPIRE', PENDING_KEY, int(PENDING_TTL))
end
return new()
