-- `begin`. ARGV: id for a new counter, message, id that the client chose, conversation, owner,
-- number of the owner's last attempt, `restarted` frame, grace period for expired leases (ms),
-- maximum number of turns (0: no history), maximum age of the newest turn (ms), version of the
-- history that the caller has cached, the cancelled outcome (6 arguments) if an earlier run
-- returned `cancelled`
local message, conversation, owner, last_attempt = ARGV[2], ARGV[4], ARGV[5], tonumber(ARGV[6])
-- Maximum time (ms) past its expiry for which a lease may stay valid after an outage.
local MAX_GRACE = 60000

local frame, position, is_forgotten = outcome(message)
if frame then
  return { 'ended', frame, position or '' }
end
if is_forgotten or is_cancelled(message) then
  if not ARGV[12] then
    return { 'cancelled' }
  end
  if not is_forgotten then
    store_outcome(conversation, message, 12)
  end
  return { 'ended', ARGV[12], position or '' }
end

local key = answer_key(message)
local answer = redis.call('HMGET', key, 'owner', 'until', 'attempt', 'stream')
local current_owner, lease_until, attempt = answer[1], answer[2], tonumber(answer[3] or '0')
local earlier_stream = answer[4]

-- Counts this owner among the owners that have begun the existing answer, unless it is counted
-- already. Returns the number of these owners.
local function count_delivery()
  if redis.call('HSETNX', key, 'by:' .. owner, '1') == 1 then
    return redis.call('HINCRBY', key, 'taking', 1)
  end
  return redis.call('HGET', key, 'taking')
end

if current_owner and current_owner ~= owner then
  lease_until = tonumber(lease_until)
  -- While this server was unavailable, the owner could not renew its lease, so the lease stays
  -- valid for a grace period. The period is bounded, because the caller may find the server
  -- unavailable again and again although the owner is dead.
  local grace_until = math.min(now + tonumber(ARGV[8]), lease_until + MAX_GRACE)
  lease_until = math.max(lease_until, grace_until)
  if lease_until > now then
    return { 'busy', int(lease_until - now) }
  end
end

-- Returns the reply with an attempt. It contains the turns, unless none are requested or the caller
-- has cached the current version of the history.
local function attempt_response(number, delivery_count)
  local limit = tonumber(ARGV[9])
  if limit == 0 then
    return { 'attempt', int(number), int(now), delivery_count }
  end
  local version = history_version(conversation)
  if version == ARGV[11] then
    return { 'attempt', int(number), int(now), delivery_count, version }
  end
  local turns = context(conversation, limit, ARGV[10])
  return { 'attempt', int(number), int(now), delivery_count, version, turns }
end

if current_owner == owner and attempt > last_attempt then
  -- This call is a repeat, so the attempt and the parts that were opened since stay.
  redis.call('HSET', key, 'until', int(now + LEASE))
  renew_answer(message, earlier_stream)
  return attempt_response(attempt, int(count_delivery()))
end

attempt = math.max(attempt, last_attempt) + 1
-- Owner and attempt make a stream that no earlier attempt has had.
local stream = owner .. '.' .. int(attempt)
local delivery_count = '1'
if answer[3] then
  if earlier_stream then
    redis.call('DEL', stream_key(message, earlier_stream))
  end
  delivery_count = int(count_delivery())
else
  redis.call('HSET', key, 'id', ARGV[3], 'conversation', conversation, 'by:' .. owner, '1',
    'taking', '1')
end
redis.call('HSET', key, 'owner', owner, 'until', int(now + LEASE), 'attempt', int(attempt),
  'stream', stream, 'parts', '0')
redis.call('SADD', ANSWERS_KEY, message)
renew_expiry(key, PENDING_TTL)
renew_expiry(ANSWERS_KEY, PENDING_TTL)
if attempt > 1 then
  publish(LIVE_CHANNEL, ARGV[7], ARGV[1],
    ',"stream":"' .. stream .. '","attempt":' .. int(attempt))
end
return attempt_response(attempt, delivery_count)
