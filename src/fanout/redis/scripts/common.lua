-- Shared by all scripts about one user. KEYS[1] is the user's hash tag, `{user:alice}`. All keys
-- built from it are in one slot, and so are both channels. The constants (in milliseconds unless
-- their name says otherwise) are put in front of this file when the scripts are built.
--
-- Keys, after the prefix:
--   n                 sequence counter (publish.lua)
--   p                 pending messages (pending.lua)
--   c:MESSAGE         cancel mark
--   o:MESSAGE         outcome: frame (f), position once delivered (p), 1 for a tombstone (x)
--   a:MESSAGE         answer in flight: owner, end of the lease (until), attempt, index of the next
--                     delta (next), client's id (id), conversation, delivery count (taking), and
--                     by:OWNER for each owner
--   t:MESSAGE         text of the answer in flight
--   as                messages with an answer in flight
--   m, mz, mf         mailbox (mailbox.lua)
--   h:, ho:, hl, hx   history (history.lua)
--   r, u:DAY          rate limit and daily tokens (limits.lua, tokens.lua)
--   rv                time of the last revocation
local TAG = KEYS[1]
local PREFIX = TAG .. ':1:' -- 1 is the version of this schema
local TERMINAL_CHANNEL = string.sub(TAG, 2, -2)
local LIVE_CHANNEL = TAG .. ':live'
local PENDING_KEY = PREFIX .. 'p'
local ANSWERS_KEY = PREFIX .. 'as'

local clock = redis.call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)

-- Lua would format a large number as 1e+15.
local function int(number)
  return string.format('%d', number)
end

local function outcome_key(message)
  return PREFIX .. 'o:' .. message
end

local function answer_key(message)
  return PREFIX .. 'a:' .. message
end

local function text_key(message)
  return PREFIX .. 't:' .. message
end

-- The expiry of a key that changes often is not renewed at every change, but at the first one in
-- each interval of a 32nd of its time to live. It is renewed for one interval more, so it is never
-- shorter than `ttl` after a change.
local function renewal_interval(ttl)
  return math.max(math.floor(ttl / 32), 1)
end

-- Whether the expiry has to be renewed if the last change was at `previous` (nil: there was none).
local function needs_renewal(previous, ttl)
  previous = tonumber(previous)
  local interval = renewal_interval(ttl)
  return not previous or math.floor(previous / interval) ~= math.floor(now / interval)
end

local function renew_expiry(key, ttl)
  redis.call('PEXPIRE', key, int(ttl + renewal_interval(ttl)))
end

-- Returns the terminal frame, its position once delivered, and whether the message was forgotten. A
-- forgotten message has no frame; it ends as cancelled unless an outcome was delivered before.
local function outcome(message)
  local fields = redis.call('HMGET', outcome_key(message), 'f', 'p', 'x')
  return fields[1], fields[2], fields[3]
end

local function is_cancelled(message)
  return redis.call('EXISTS', PREFIX .. 'c:' .. message) == 1
end
