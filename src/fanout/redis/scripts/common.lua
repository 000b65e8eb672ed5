-- Shared by every script about one user. KEYS[1] is the user's hash tag, `{user:alice}`: every key
-- made from it is in its slot, which is the slot of both channels too. The head (bounds in
-- milliseconds, the command that publishes, the lease) is put before this when the scripts are made.
local TAG = KEYS[1]
local P = TAG .. ':1:' -- 1 is the version of the schema
local TERMINAL = string.sub(TAG, 2, -2)
local LIVE = TAG .. ':live'

local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)

-- Lua would write a large number as 1e+15.
local function int(x)
  return string.format('%.0f', x)
end

local function touch_counter()
  redis.call('PEXPIRE', P .. 'n', int(math.max(MAILBOX_TTL, DEDUP_TTL, PENDING_TTL)))
end

-- The counter's random id is the caller's: Redis's own randomness repeats after a restart.
local function publish(channel, frame, new_counter, extra)
  local key = P .. 'n'
  local n = redis.call('HINCRBY', key, 'n', 1)
  local id = redis.call('HGET', key, 'id')
  if not id then
    id = new_counter
    redis.call('HSET', key, 'id', id)
  end
  touch_counter()
  return redis.call(PUBLISH, channel, string.sub(frame, 1, -2) .. (extra or '')
    .. ',"n":' .. int(n) .. ',"n_id":"' .. id .. '"}')
end

-- The terminal frame; once delivered, its position; and whether the message was forgotten: then it
-- has no frame, ends as cancelled if nothing was delivered yet, and leaves nothing behind.
local function outcome(message)
  local o = redis.call('HMGET', P .. 'o:' .. message, 'f', 'p', 'x')
  return o[1], o[2], o[3]
end

local function keep_outcome(message, frame)
  local key = P .. 'o:' .. message
  redis.call('HSET', key, 'f', frame)
  redis.call('PEXPIRE', key, int(DEDUP_TTL))
end

local function is_cancelled(message)
  return redis.call('EXISTS', P .. 'c:' .. message) == 1
end

local function drop_pending(message)
  redis.call('ZREM', P .. 'po', message)
  redis.call('HDEL', P .. 'p', message)
end

-- What nothing has ended in all that time.
local function expire_pending()
  local old = redis.call('ZRANGEBYSCORE', P .. 'po', '-inf', int(now_us - PENDING_TTL * 1000))
  for _, message in ipairs(old) do
    drop_pending(message)
  end
end

local function touch_answer(message)
  redis.call('PEXPIRE', P .. 'a:' .. message, int(PENDING_TTL))
  redis.call('PEXPIRE', P .. 't:' .. message, int(PENDING_TTL))
  redis.call('PEXPIRE', P .. 'as', int(PENDING_TTL))
end
