-- The mailbox. `m`: its id, epoch (ep, empty before the first frame), floor (fl: every frame after
-- this offset is here), end (en), bytes, when its expiry was renewed (at), and v while it is as a
-- `read` made it and untrimmed, so that the position of the empty mailbox is still good. Once its
-- user has moved to another partition: where it ended in the other epochs (was), and below which
-- offset no position is good (fr). `mz`:
-- `offset:time:bytes:message conversation` by offset. `mf`: the frames by offset.
local M, MZ, MF = P .. 'm', P .. 'mz', P .. 'mf'

-- Two partitions are brought back at once after a loss, in any order: until something new comes, a
-- position in one says nothing about the other. Above every offset, and exact as a number.
local NONE_IS_GOOD = '9007199254740991'
-- Other epochs whose end is remembered.
local OTHER_EPOCHS = 16

local function ended_before(was, epoch)
  for other, offset in string.gmatch(was or '', '(%S+)%.(%d+)') do
    if other == epoch then
      return offset
    end
  end
end

-- `was` with the end of one more epoch, and without the epoch that is current now.
local function with_end(was, epoch, offset, current)
  local list, count = epoch .. '.' .. offset, 1
  for other, at in string.gmatch(was or '', '(%S+)%.(%d+)') do
    if other ~= epoch and other ~= current and count < OTHER_EPOCHS then
      list, count = list .. ' ' .. other .. '.' .. at, count + 1
    end
  end
  return list
end

-- Twice the age of a frame: the end has to outlive the frames.
local function touch_mailbox()
  redis.call('HSET', M, 'at', int(now))
  renew(M, 2 * MAILBOX_TTL)
  renew(MZ, 2 * MAILBOX_TTL)
  renew(MF, 2 * MAILBOX_TTL)
end

-- Removes from the front what is over the bounds in number and bytes, and where `aged` says so
-- what is too old. `bytes` is noted already, `v` is as above. Returns the new floor, if it moved.
local function trim_mailbox(frames, bytes, v, aged)
  local removed
  while frames > 0 do
    local over = frames > MAILBOX_FRAMES or bytes > MAILBOX_BYTES
    if not over and not aged then
      break
    end
    local entry = redis.call('ZRANGE', MZ, 0, 0)[1]
    local offset, at, size = string.match(entry, '^(%d+):(%d+):(%d+):')
    if not over and tonumber(at) > now - MAILBOX_TTL then
      break
    end
    redis.call('ZREM', MZ, entry)
    redis.call('HDEL', MF, offset)
    frames = frames - 1
    bytes = bytes - tonumber(size)
    removed = offset
  end
  if removed then
    redis.call('HSET', M, 'fl', removed, 'bytes', int(bytes))
    if v then
      redis.call('HDEL', M, 'v')
    end
  end
  return removed
end
