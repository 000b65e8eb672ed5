-- The mailbox. `m`: its id, epoch (ep, empty before the first frame), floor (fl: every frame after
-- this offset is here), end (en), bytes, and v while it is as a `read` made it and untrimmed, so
-- that the position of the empty mailbox is still good. `mz`: `offset:time:bytes:message conversation` by offset.
-- `mf`: the frames by offset.
local M, MZ, MF = P .. 'm', P .. 'mz', P .. 'mf'

-- Twice the age of a frame: the end has to outlive the frames.
local function touch_mailbox()
  redis.call('PEXPIRE', M, int(2 * MAILBOX_TTL))
  redis.call('PEXPIRE', MZ, int(2 * MAILBOX_TTL))
  redis.call('PEXPIRE', MF, int(2 * MAILBOX_TTL))
end

local function trim_mailbox()
  local frames = redis.call('ZCARD', MZ)
  if frames == 0 then
    return
  end
  local bytes = tonumber(redis.call('HGET', M, 'bytes'))
  local removed
  while frames > 0 do
    local entry = redis.call('ZRANGE', MZ, 0, 0)[1]
    local offset, at, size = string.match(entry, '^(%d+):(%d+):(%d+):')
    if frames <= MAILBOX_FRAMES and bytes <= MAILBOX_BYTES and tonumber(at) > now - MAILBOX_TTL then
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
    redis.call('HDEL', M, 'v')
  end
end
