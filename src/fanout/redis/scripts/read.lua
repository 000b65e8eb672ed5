-- ARGV: new counter's id, new mailbox's id, epoch after (or empty), offset after, bytes of frames,
-- '1' for all frames where there is no position after which
redis.call('HSETNX', P .. 'n', 'id', ARGV[1])
touch_counter()
local counter = redis.call('HMGET', P .. 'n', 'n', 'id')

if redis.call('HSETNX', M, 'id', ARGV[2]) == 1 then
  redis.call('DEL', MZ, MF)
  redis.call('HSET', M, 'ep', '', 'fl', '0', 'en', '0', 'bytes', '0', 'v', '1')
end
trim_mailbox()
touch_mailbox()
local mailbox = redis.call('HMGET', M, 'id', 'ep', 'fl', 'en', 'v')
local epoch, empty = mailbox[2], 'new~' .. mailbox[1]
local last = empty .. '.0'
if epoch ~= '' then
  last = epoch .. '.' .. mailbox[4]
end

local from
if ARGV[3] == empty then
  if mailbox[5] and ARGV[4] == '0' then
    from = '-inf'
  end
elseif ARGV[3] ~= '' and ARGV[3] == epoch then
  local after = tonumber(ARGV[4])
  if after >= tonumber(mailbox[3]) and after <= tonumber(mailbox[4]) then
    from = '(' .. ARGV[4]
  end
end

local frames, more = {}, '0'
local first = from or (ARGV[6] == '1' and '-inf')
if first then
  local room = tonumber(ARGV[5])
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', MZ, first, '+inf')) do
    local offset, _, size = string.match(entry, '^(%d+):(%d+):(%d+):')
    room = room - tonumber(size)
    if room < 0 and #frames > 0 then
      more = '1'
      break
    end
    frames[#frames + 1] = epoch .. '.' .. offset
    frames[#frames + 1] = redis.call('HGET', MF, offset)
  end
end

local answers = {}
for _, message in ipairs(redis.call('SMEMBERS', P .. 'as')) do
  local a = redis.call('HMGET', P .. 'a:' .. message, 'attempt', 'next', 'id', 'conversation')
  if a[1] then
    local text = redis.call('GET', P .. 't:' .. message) or ''
    answers[#answers + 1] = { message, a[3], a[4], a[1], a[2], text }
  else
    redis.call('SREM', P .. 'as', message)
  end
end

expire_pending()
local pending = {}
for _, message in ipairs(redis.call('ZRANGE', P .. 'po', 0, -1)) do
  pending[#pending + 1] = message
  pending[#pending + 1] = redis.call('HGET', P .. 'p', message) or ''
end
return { counter[1] or '0', counter[2], last, from and '1' or '0', more, frames, answers, pending }
