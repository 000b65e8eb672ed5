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
  return string.format('%d', x)
end

-- What changes often has its expiry renewed not with every change but with the first one in each
-- 32nd part of its time, and for a part longer: so it is never shorter than `ttl` after a change.
local function part(ttl)
  return math.max(math.floor(ttl / 32), 1)
end

-- Whether that is to be done, where the last change was at `before` (ms; nil: there was none).
local function is_due(before, ttl)
  before = tonumber(before)
  return not before or math.floor(before / part(ttl)) ~= math.floor(now / part(ttl))
end

local function renew(key, ttl)
  redis.call('PEXPIRE', key, int(ttl + part(ttl)))
end

-- The terminal frame; once delivered, its position; and whether the message was forgotten: then it
-- has no frame, ends as cancelled if nothing was delivered yet, and leaves nothing behind.
local function outcome(message)
  local o = redis.call('HMGET', P .. 'o:' .. message, 'f', 'p', 'x')
  return o[1], o[2], o[3]
end

local function is_cancelled(message)
  return redis.call('EXISTS', P .. 'c:' .. message) == 1
end

-- What is pending (pending.lua).
local PENDING_KEY = P .. 'p'
