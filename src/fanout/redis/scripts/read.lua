-- ARGV: new counter's id, new mailbox's id, epoch after (or empty), offset after, bytes of frames,
-- '1' for all frames where there is no position after which
local n_id, n = counter(ARGV[1])

local mailbox = redis.call('HMGET', M, 'id', 'ep', 'fl', 'en', 'v', 'at', 'bytes', 'fr', 're')
if not mailbox[1] then
  redis.call('DEL', MZ, MF)
  redis.call('HSET', M, 'id', ARGV[2], 'ep', '', 'fl', '0', 'en', '0', 'bytes', '0', 'v', '1')
  mailbox = { ARGV[2], '', '0', '0', '1' }
end
if is_due(mailbox[6], 2 * MAILBOX_TTL) then
  touch_mailbox()
end
local floor = trim_mailbox(redis.call('ZCARD', MZ), tonumber(mailbox[7] or '0'), mailbox[5], true)
if floor then
  mailbox[3], mailbox[5] = floor, nil
end
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
  local good = math.max(tonumber(mailbox[3]), tonumber(mailbox[8] or '0'))
  if after >= good and after <= tonumber(mailbox[4]) then
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

local pending = {}
for _, entry in ipairs(all_pending()) do
  pending[#pending + 1] = entry.message
  pending[#pending + 1] = entry.entry
end
local rebuilt = mailbox[9] and epoch .. '.' .. mailbox[9] or ''
return { n or '0', n_id, last, from and '1' or '0', more, rebuilt, frames, answers, pending }
