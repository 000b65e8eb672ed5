-- The counter and its random id, which is the caller's: Redis's own randomness repeats after a
-- restart. `at` is when the expiry was renewed.
local COUNTER, COUNTER_TTL = P .. 'n', math.max(MAILBOX_TTL, DEDUP_TTL, PENDING_TTL)

local function counter(new_id)
  local c = redis.call('HMGET', COUNTER, 'id', 'at', 'n')
  if not c[1] or is_due(c[2], COUNTER_TTL) then
    redis.call('HSET', COUNTER, 'id', c[1] or new_id, 'at', int(now))
    renew(COUNTER, COUNTER_TTL)
  end
  return c[1] or new_id, c[3]
end

local function publish(channel, frame, new_counter, extra)
  local n = redis.call('HINCRBY', COUNTER, 'n', 1)
  return redis.call(PUBLISH, channel, string.sub(frame, 1, -2) .. (extra or '')
    .. ',"n":' .. int(n) .. ',"n_id":"' .. counter(new_counter) .. '"}')
end
