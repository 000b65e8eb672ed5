-- Shared by all scripts about one user. KEYS[1] is the user's hash tag, `{user:alice}`. The keys
-- and the live and cancel channels begin with the tag, so they are in one slot; the terminal
-- channel hashes to the same slot. No key has the name of KEYS[1] or KEYS[2]: see scripts.rs.
-- Constants that are not defined here (times in milliseconds unless their name says otherwise) are
-- prepended to this file when the scripts are built.
--
-- Names of the keys after PREFIX:
--   n                 sequence counter (publish.lua)
--   p                 pending messages (pending.lua)
--   c:MESSAGE         cancel mark
--   o:MESSAGE         outcome: frame (f), position of the delivered record (p), 1 for a tombstone
--                     (x)
--   a:MESSAGE         answer in flight: owner, end of the lease (until), attempt, its stream,
--                     number of open parts (parts), id that the client chose (id), conversation,
--                     delivery count (taking), and by:OWNER for each owner that has begun the
--                     message
--   s:MESSAGE:STREAM  pieces of a stream (stream.lua)
--   as                set of the messages with an answer in flight
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

-- Formats a number as an integer for a Redis command. Lua itself would format 1e15 as `1e+15`.
local function int(number)
  return string.format('%d', number)
end

local function outcome_key(message)
  return PREFIX .. 'o:' .. message
end

local function answer_key(message)
  return PREFIX .. 'a:' .. message
end

-- Interval in which the expiry of a key is renewed at most once: a 32nd of its time to live. A key
-- that changes often is renewed at the first change in each interval, for `ttl` and one interval
-- more. So a key always exists for at least `ttl` after its last change.
local function renewal_interval(ttl)
  return math.max(math.floor(ttl / 32), 1)
end

-- Whether this change has to renew the expiry of a key whose last change or renewal was at
-- `previous` (ms; nil if there was none).
local function needs_renewal(previous, ttl)
  previous = tonumber(previous)
  local interval = renewal_interval(ttl)
  return not previous or math.floor(previous / interval) ~= math.floor(now / interval)
end

-- Lets the key expire `ttl` and one renewal interval from now.
local function renew_expiry(key, ttl)
  redis.call('PEXPIRE', key, int(ttl + renewal_interval(ttl)))
end

-- Returns the terminal frame of a message (false if it has no outcome), the position of the
-- delivered record (false if none was delivered), and whether the message was forgotten (false or
-- '1'). A forgotten message has no frame.
local function outcome(message)
  local fields = redis.call('HMGET', outcome_key(message), 'f', 'p', 'x')
  return fields[1], fields[2], fields[3]
end

-- Whether the message has a cancel mark.
local function is_cancelled(message)
  return redis.call('EXISTS', PREFIX .. 'c:' .. message) == 1
end
