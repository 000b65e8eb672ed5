-- `cancel`. ARGV: message, notice for the worker that generates the answer
local message, notice = ARGV[1], ARGV[2]
local frame, _, is_forgotten = outcome(message)
if frame or is_forgotten then
  return { 'already_done' }
end
redis.call('SET', PREFIX .. 'c:' .. message, '1', 'PX', int(DEDUP_TTL))
redis.call(PUBLISH_COMMAND, TAG .. ':cancel', notice)
if is_pending(message) or redis.call('EXISTS', answer_key(message)) == 1 then
  return { 'cancelling' }
end
return { 'unknown' }
