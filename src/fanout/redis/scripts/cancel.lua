-- ARGV: message, notice for the owner
local frame, _, forgotten = outcome(ARGV[1])
if frame or forgotten then
  return { 'already_done' }
end
redis.call('SET', P .. 'c:' .. ARGV[1], '1', 'PX', int(DEDUP_TTL))
redis.call(PUBLISH, TAG .. ':cancel', ARGV[2])
if is_pending(ARGV[1])
  or redis.call('EXISTS', P .. 'a:' .. ARGV[1]) == 1 then
  return { 'cancelling' }
end
return { 'unknown' }
