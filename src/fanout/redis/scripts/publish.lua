-- Publishes frames with sequence numbers. The hash COUNTER_KEY is the sequence counter: its value
-- (n), its random id (id), and when its expiry was renewed (at). The script's caller generates the
-- id, because Redis's own random numbers repeat after a restart.
local COUNTER_KEY = PREFIX .. 'n'
local COUNTER_TTL = math.max(MAILBOX_TTL, DEDUP_TTL, PENDING_TTL)

-- Returns the counter's id and value. Creates the counter with the id `new_id` if there is none,
-- and renews its expiry if necessary.
local function counter(new_id)
  local fields = redis.call('HMGET', COUNTER_KEY, 'id', 'at', 'n')
  local id = fields[1] or new_id
  if not fields[1] or needs_renewal(fields[2], COUNTER_TTL) then
    redis.call('HSET', COUNTER_KEY, 'id', id, 'at', int(now))
    renew_expiry(COUNTER_KEY, COUNTER_TTL)
  end
  return id, fields[3]
end

-- Publishes a JSON frame, to which it adds the next sequence number and the `extra` fields (text
-- like `,"attempt":2`, or nil). Returns the number of subscriptions that received the frame.
local function publish(channel, frame, new_counter_id, extra)
  local n = redis.call('HINCRBY', COUNTER_KEY, 'n', 1)
  return redis.call(PUBLISH_COMMAND, channel, string.sub(frame, 1, -2) .. (extra or '')
    .. ',"n":' .. int(n) .. ',"n_id":"' .. counter(new_counter_id) .. '"}')
end
