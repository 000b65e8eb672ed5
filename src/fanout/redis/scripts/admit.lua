-- ARGV: message, its entry in pending (JSON), its conversation
local frame, position, forgotten = outcome(ARGV[1])
if forgotten then
  -- Without a position nobody has been told yet: a worker will say that it is cancelled, once the
  -- log has it. What was written is not noted again.
  return { position and 'forgotten' or 'new' }
end
if position then
  return { 'delivered', frame, position }
end
if frame then
  return { 'kept' }
end
expire_pending()
if redis.call('HEXISTS', P .. 'p', ARGV[1]) == 0 then
  local over = over_limit(ARGV[3])
  if over then
    return over
  end
  redis.call('HSET', P .. 'p', ARGV[1], ARGV[2])
  redis.call('ZADD', P .. 'po', int(now_us), ARGV[1])
end
redis.call('PEXPIRE', P .. 'p', int(PENDING_TTL))
redis.call('PEXPIRE', P .. 'po', int(PENDING_TTL))
return { 'new' }
