-- ARGV: new counter's id, new mailbox's id, message, conversation (or empty), epoch, offset, known
-- epoch (or empty), known offset, 1 in a rewind, frame, answer, status, time of the record in ms (or
-- empty)
local message, epoch, offset = ARGV[3], ARGV[5], tonumber(ARGV[6])
local rewind = ARGV[9] == '1'
local mailbox = redis.call('HMGET', M, 'id', 'ep', 'en', 'bytes', 'at', 'v', 'was', 'fr')
local same = mailbox[2] == epoch
-- Where it ended in this epoch: partitions were added and its user moved, and a relay that takes
-- the old partition goes back in it.
local last = same and mailbox[3] or ended_before(mailbox[7], epoch)

-- What is known of another epoch says nothing about this one.
if ARGV[7] == epoch and (not last or tonumber(last) < tonumber(ARGV[8])) then
  return { 'lost' }
end
redis.call('HDEL', PENDING_KEY, message)
if last and offset <= tonumber(last) then
  return { 'already' }
end

local bytes, due, v = tonumber(mailbox[4] or '0'), is_due(mailbox[5], 2 * MAILBOX_TTL), mailbox[6]
if not mailbox[1] or (not same and mailbox[2] ~= '') then
  redis.call('DEL', M, MZ, MF)
  redis.call('HSET', M, 'id', ARGV[2], 'ep', epoch, 'fl', ARGV[6])
  if mailbox[1] then
    redis.call('HSET', M, 'was', with_end(mailbox[7], mailbox[2], mailbox[3], epoch))
    if rewind then
      redis.call('HSET', M, 'fr', NONE_IS_GOOD)
    end
  end
  bytes, due, v = 0, true, nil
elseif not same then
  redis.call('HSET', M, 'ep', epoch, 'fl', ARGV[6])
elseif mailbox[8] == NONE_IS_GOOD and not rewind then
  redis.call('HSET', M, 'fr', ARGV[6])
end

-- Also for a message that was delivered at another position: the relay names this one as known next.
local function note_end()
  redis.call('HSET', M, 'en', ARGV[6], 'bytes', int(bytes))
  if due then
    touch_mailbox()
  end
end

local place = epoch .. '.' .. ARGV[6]
local kept, position, forgotten = outcome(message)
if position and position ~= place then
  note_end()
  return { 'already' }
end

redis.call('DEL', P .. 'a:' .. message, P .. 't:' .. message)
redis.call('SREM', P .. 'as', message)
local channel = rewind and LIVE or TERMINAL
local key = P .. 'o:' .. message
if forgotten then
  -- Its end is still told, once, and nothing of it is kept.
  redis.call('HSET', key, 'p', place)
  redis.call('PEXPIRE', key, int(DEDUP_TTL))
  note_end()
  return { 'published', publish(channel, ARGV[10], ARGV[1]) }
end
redis.call('HSET', key, 'f', ARGV[10], 'p', place)
redis.call('PEXPIRE', key, int(DEDUP_TTL))
-- The frame that was kept, with its position added, has its turn in the history since then.
local as_kept = kept and string.sub(ARGV[10], 1, #kept - 1) == string.sub(kept, 1, -2)
if ARGV[4] ~= '' and not as_kept then
  -- Of one millisecond they are told apart by the offset.
  local ended = tonumber(ARGV[13])
  put_turn(ARGV[4], message, false, ARGV[11], ARGV[12], ended and ended * 1000 + offset % 1000)
end

local size = #ARGV[10]
bytes = bytes + size
redis.call('ZADD', MZ, ARGV[6], ARGV[6] .. ':' .. int(now) .. ':' .. size .. ':' .. message .. ' ' .. ARGV[4])
redis.call('HSET', MF, ARGV[6], ARGV[10])
if rewind then
  redis.call('HSET', M, 're', ARGV[6])
end
local frames = redis.call('ZCARD', MZ)
-- Both are made anew with the first frame.
due = due or frames == 1
note_end()
trim_mailbox(frames, bytes, v, due)
return { 'published', publish(channel, ARGV[10], ARGV[1]) }
