-- The mailbox.
--   m    hash: id; epoch of the last frame (ep, empty before the first frame); floor (fl): all
--        frames after this offset are present; end (en): offset of the last frame; size of all frames
--        (bytes); when the expiry was renewed (at); v while it is as a `read` created it and
--        untrimmed, so that the position of the empty mailbox is valid; last frame that a rewind
--        appended (re). Once the user has moved to another partition: ends in other epochs (was),
--        and the offset below which no position is valid (fr)
--   mz   `offset:time:bytes:message conversation` by offset
--   mf   frames by offset
local MAILBOX_KEY, MAILBOX_ORDER_KEY, MAILBOX_FRAMES_KEY =
  PREFIX .. 'm', PREFIX .. 'mz', PREFIX .. 'mf'

-- Value of `fr` while no position is valid: above every offset, and exact as a number. After a data
-- loss two partitions may be rebuilt in any order, and a position in one says nothing about the
-- other until a new frame arrives.
local NO_VALID_POSITION = '9007199254740991'
-- Number of other epochs whose end is remembered.
local OTHER_EPOCHS = 16

-- The mailbox's end in another epoch.
local function end_in(other_ends, epoch)
  for other, offset in string.gmatch(other_ends or '', '(%S+)%.(%d+)') do
    if other == epoch then
      return offset
    end
  end
end

-- The ends with one more at the front, and without the epoch that becomes the current one.
local function add_end(other_ends, epoch, offset, new_epoch)
  local ends, count = epoch .. '.' .. offset, 1
  for other, other_offset in string.gmatch(other_ends or '', '(%S+)%.(%d+)') do
    if other ~= epoch and other ~= new_epoch and count < OTHER_EPOCHS then
      ends, count = ends .. ' ' .. other .. '.' .. other_offset, count + 1
    end
  end
  return ends
end

-- Renews the mailbox's expiry: twice the time to live of a frame, because its end has to outlive
-- them.
local function touch_mailbox()
  redis.call('HSET', MAILBOX_KEY, 'at', int(now))
  renew_expiry(MAILBOX_KEY, 2 * MAILBOX_TTL)
  renew_expiry(MAILBOX_ORDER_KEY, 2 * MAILBOX_TTL)
  renew_expiry(MAILBOX_FRAMES_KEY, 2 * MAILBOX_TTL)
end

-- Removes the oldest frames until the mailbox is within its bounds in number and size, and with
-- `removes_expired` in age. `bytes` is stored already; `untrimmed` is the field v. Returns the new
-- floor if it changed.
local function trim_mailbox(frames, bytes, untrimmed, removes_expired)
  local floor
  while frames > 0 do
    local is_over = frames > MAILBOX_FRAMES or bytes > MAILBOX_BYTES
    if not is_over and not removes_expired then
      break
    end
    local entry = redis.call('ZRANGE', MAILBOX_ORDER_KEY, 0, 0)[1]
    local offset, at, size = string.match(entry, '^(%d+):(%d+):(%d+):')
    if not is_over and tonumber(at) > now - MAILBOX_TTL then
      break
    end
    redis.call('ZREM', MAILBOX_ORDER_KEY, entry)
    redis.call('HDEL', MAILBOX_FRAMES_KEY, offset)
    frames = frames - 1
    bytes = bytes - tonumber(size)
    floor = offset
  end
  if floor then
    redis.call('HSET', MAILBOX_KEY, 'fl', floor, 'bytes', int(bytes))
    if untrimmed then
      redis.call('HDEL', MAILBOX_KEY, 'v')
    end
  end
  return floor
end
