-- `deliver`. ARGV: id for a new counter, id for a new mailbox, message, conversation (or empty),
-- epoch and offset of the record, epoch and offset at or above which the mailbox is known to end
-- (or empty), 1 in a rewind, frame, answer, status, time at which the log received the record in ms
-- (or empty), parts of the answer (or empty)
local message, conversation, epoch, offset = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local is_rewind, new_frame = ARGV[9] == '1', ARGV[10]
local mailbox = redis.call('HMGET', MAILBOX_KEY, 'id', 'ep', 'en', 'bytes', 'at', 'v', 'was', 'fr')
local id, current_epoch, current_end, other_ends = mailbox[1], mailbox[2], mailbox[3], mailbox[7]
local is_same_epoch = current_epoch == epoch
-- The offset at which the mailbox ends in the record's epoch. That can be an epoch before the
-- current epoch: when partitions are added, a user moves to another partition, and a relay that
-- takes over the old partition rewinds it.
local last = is_same_epoch and current_end or end_in(other_ends, epoch)

-- A known end in another epoch is ignored, because positions of two epochs can't be compared.
if ARGV[7] == epoch and (not last or tonumber(last) < tonumber(ARGV[8])) then
  return { 'lost' }
end
redis.call('HDEL', PENDING_KEY, message)
if last and offset <= tonumber(last) then
  return { 'already' }
end

local bytes, untrimmed = tonumber(mailbox[4] or '0'), mailbox[6]
local needs_touch = needs_renewal(mailbox[5], 2 * MAILBOX_TTL)
if not id or (not is_same_epoch and current_epoch ~= '') then
  -- There is no mailbox, or the mailbox's end is in another epoch: begin an empty mailbox.
  redis.call('DEL', MAILBOX_KEY, MAILBOX_ORDER_KEY, MAILBOX_FRAMES_KEY)
  redis.call('HSET', MAILBOX_KEY, 'id', ARGV[2], 'ep', epoch, 'fl', ARGV[6])
  if id then
    local ends = add_end(other_ends, current_epoch, current_end, epoch)
    redis.call('HSET', MAILBOX_KEY, 'was', ends)
    if is_rewind then
      redis.call('HSET', MAILBOX_KEY, 'fr', NO_VALID_POSITION)
    end
  end
  bytes, needs_touch, untrimmed = 0, true, nil
elseif not is_same_epoch then
  redis.call('HSET', MAILBOX_KEY, 'ep', epoch, 'fl', ARGV[6])
elseif mailbox[8] == NO_VALID_POSITION and not is_rewind then
  redis.call('HSET', MAILBOX_KEY, 'fr', ARGV[6])
end

-- Advances the mailbox's end to the record. That is done also for a message that was delivered at
-- another position, because the relay passes this record's position as the known end next.
local function advance_end()
  redis.call('HSET', MAILBOX_KEY, 'en', ARGV[6], 'bytes', int(bytes))
  if needs_touch then
    touch_mailbox()
  end
end

local new_position = epoch .. '.' .. ARGV[6]
local stored_frame, position, is_forgotten = outcome(message)
if position and position ~= new_position then
  advance_end()
  return { 'already' }
end

remove_answer(message)
local channel = is_rewind and LIVE_CHANNEL or TERMINAL_CHANNEL
local key = outcome_key(message)
if is_forgotten then
  -- The terminal frame of a forgotten message is published once and not stored.
  redis.call('HSET', key, 'p', new_position)
  redis.call('PEXPIRE', key, int(DEDUP_TTL))
  advance_end()
  return { 'published', publish(channel, new_frame, ARGV[1]) }
end
redis.call('HSET', key, 'f', new_frame, 'p', new_position)
redis.call('PEXPIRE', key, int(DEDUP_TTL))
-- If the frame is the stored frame with a position added, `keep` has stored its turn already.
local is_turn_stored = stored_frame
  and string.sub(new_frame, 1, #stored_frame - 1) == string.sub(stored_frame, 1, -2)
if conversation ~= '' and not is_turn_stored then
  -- The microseconds come from the offset, so that records of the same millisecond keep their
  -- order.
  local logged = tonumber(ARGV[13])
  local logged_us = logged and logged * 1000 + offset % 1000
  put_turn(conversation, message, false, ARGV[11], ARGV[12], ARGV[14], logged_us)
end

local size = #new_frame
bytes = bytes + size
local entry = ARGV[6] .. ':' .. int(now) .. ':' .. size .. ':' .. message .. ' ' .. conversation
redis.call('ZADD', MAILBOX_ORDER_KEY, ARGV[6], entry)
redis.call('HSET', MAILBOX_FRAMES_KEY, ARGV[6], new_frame)
if is_rewind then
  redis.call('HSET', MAILBOX_KEY, 're', ARGV[6])
end
local frames = redis.call('ZCARD', MAILBOX_ORDER_KEY)
-- If this is the only frame, it has created the keys of order and frames, which have no expiry yet.
needs_touch = needs_touch or frames == 1
advance_end()
trim_mailbox(frames, bytes, untrimmed, needs_touch)
return { 'published', publish(channel, new_frame, ARGV[1]) }
