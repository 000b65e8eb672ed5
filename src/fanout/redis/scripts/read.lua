-- `read`. ARGV: id for a new counter, id for a new mailbox, epoch and offset after which to read
-- (both empty: no position), maximum size of all returned frames in bytes, 1 to read all frames if
-- there is no position
local after_epoch, after_offset = ARGV[3], ARGV[4]
local n_id, n = counter(ARGV[1])

local mailbox = redis.call('HMGET', MAILBOX_KEY,
  'id', 'ep', 'fl', 'en', 'v', 'at', 'bytes', 'fr', 're')
if not mailbox[1] then
  redis.call('DEL', MAILBOX_ORDER_KEY, MAILBOX_FRAMES_KEY)
  redis.call('HSET', MAILBOX_KEY,
    'id', ARGV[2], 'ep', '', 'fl', '0', 'en', '0', 'bytes', '0', 'v', '1')
  mailbox = { ARGV[2], '', '0', '0', '1' }
end
if needs_renewal(mailbox[6], 2 * MAILBOX_TTL) then
  touch_mailbox()
end
local epoch, floor, last_offset, untrimmed = mailbox[2], mailbox[3], mailbox[4], mailbox[5]
local frame_count = redis.call('ZCARD', MAILBOX_ORDER_KEY)
local new_floor = trim_mailbox(frame_count, tonumber(mailbox[7] or '0'), untrimmed, true)
if new_floor then
  floor, untrimmed = new_floor, nil
end
local empty_epoch = 'new~' .. mailbox[1]
local end_position = empty_epoch .. '.0'
if epoch ~= '' then
  end_position = epoch .. '.' .. last_offset
end

-- Lower bound of the offsets to read, for ZRANGEBYSCORE; nil if there is no position or the mailbox
-- may lack frames after the position.
local resume_from
if after_epoch == empty_epoch then
  if untrimmed and after_offset == '0' then
    resume_from = '-inf'
  end
elseif after_epoch ~= '' and after_epoch == epoch then
  local after = tonumber(after_offset)
  local first_valid = math.max(tonumber(floor), tonumber(mailbox[8] or '0'))
  if after >= first_valid and after <= tonumber(last_offset) then
    resume_from = '(' .. after_offset
  end
end

local frames, has_more = {}, '0'
local start = resume_from or (ARGV[6] == '1' and '-inf')
if start then
  local remaining = tonumber(ARGV[5])
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', MAILBOX_ORDER_KEY, start, '+inf')) do
    local offset, _, size = string.match(entry, '^(%d+):(%d+):(%d+):')
    remaining = remaining - tonumber(size)
    if remaining < 0 and #frames > 0 then
      has_more = '1'
      break
    end
    frames[#frames + 1] = epoch .. '.' .. offset
    frames[#frames + 1] = redis.call('HGET', MAILBOX_FRAMES_KEY, offset)
  end
end

local answers = {}
for _, message in ipairs(redis.call('SMEMBERS', ANSWERS_KEY)) do
  local answer = redis.call('HMGET', answer_key(message), 'attempt', 'stream', 'id', 'conversation')
  if answer[2] then
    -- The caller joins the pieces, which would take most of this script's time.
    local pieces = redis.call('LRANGE', stream_key(message, answer[2]), 0, -1)
    answers[#answers + 1] = { message, answer[3], answer[4], answer[1], answer[2], pieces }
  else
    redis.call('SREM', ANSWERS_KEY, message)
  end
end

local pending = {}
for _, entry in ipairs(all_pending()) do
  pending[#pending + 1] = entry.message
  pending[#pending + 1] = entry.entry
end
local rebuilt_up_to = mailbox[9] and epoch .. '.' .. mailbox[9] or ''
return { n or '0', n_id, end_position, resume_from and '1' or '0', has_more, rebuilt_up_to,
  frames, answers, pending }
