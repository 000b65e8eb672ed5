-- The user's mailbox. Shared by `deliver`, `read` and `forget`.
--
--   m    hash with these fields:
--          id      random id with which the mailbox was created
--          ep      epoch of the mailbox's end; empty before the first record
--          fl      floor: all frames after this offset are present
--          en      offset of the mailbox's end: the last record that reached it, trimmed or not
--          bytes   size of all frames in bytes
--          at      when the expiry was last renewed (ms)
--          v       present if a `read` created the mailbox and no frame was trimmed since: the
--                  position of the empty mailbox is valid
--          re      offset of the last frame that a rewind appended
--          was     ends in other epochs, once the user has moved to another partition
--          fr      offset below which no position is valid, once the user has moved during a rewind
--   mz   `offset:time:bytes:message conversation` of each frame, by offset
--   mf   frames by offset
local MAILBOX_KEY, MAILBOX_ORDER_KEY, MAILBOX_FRAMES_KEY =
  PREFIX .. 'm', PREFIX .. 'mz', PREFIX .. 'mf'

-- Value of `fr` while no position is valid. It is above every offset, and Lua represents it
-- exactly. After a data loss, the rewinds of two partitions can move the mailbox between their
-- epochs in any order. No position in it is valid until the first delivery that is not part of a
-- rewind.
local NO_VALID_POSITION = '9007199254740991'
-- Maximum number of other epochs of which the mailbox's end is stored.
local MAX_OTHER_EPOCHS = 16

-- Returns the offset at which the mailbox ends in `epoch`, if `other_ends` (the field `was`)
-- contains that epoch; otherwise nil.
local function end_in(other_ends, epoch)
  for other, offset in string.gmatch(other_ends or '', '(%S+)%.(%d+)') do
    if other == epoch then
      return offset
    end
  end
end

-- Returns `other_ends` with the end of `epoch` added at the front, and without the end of
-- `new_epoch`, which becomes the mailbox's current epoch.
local function add_end(other_ends, epoch, offset, new_epoch)
  local ends, count = epoch .. '.' .. offset, 1
  for other, other_offset in string.gmatch(other_ends or '', '(%S+)%.(%d+)') do
    if other ~= epoch and other ~= new_epoch and count < MAX_OTHER_EPOCHS then
      ends, count = ends .. ' ' .. other .. '.' .. other_offset, count + 1
    end
  end
  return ends
end

-- Renews the mailbox's expiry. The mailbox exists for twice the time to live of a frame after its
-- last use, because its end has to outlive its frames.
local function touch_mailbox()
  redis.call('HSET', MAILBOX_KEY, 'at', int(now))
  renew_expiry(MAILBOX_KEY, 2 * MAILBOX_TTL)
  renew_expiry(MAILBOX_ORDER_KEY, 2 * MAILBOX_TTL)
  renew_expiry(MAILBOX_FRAMES_KEY, 2 * MAILBOX_TTL)
end

-- Removes the oldest frames until the mailbox has at most MAILBOX_FRAMES frames of together at most
-- MAILBOX_BYTES bytes, and with `removes_expired` no expired frame. `frames` and `bytes` are the
-- current number and size, of which the caller has stored `bytes`; `untrimmed` is the field v.
-- Returns the new floor if a frame was removed, otherwise nil.
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
