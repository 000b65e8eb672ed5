-- ARGV: new counter's id, new mailbox's id, message, conversation (or empty), epoch, offset, known
-- epoch (or empty), known offset, 1 in a rewind, frame, answer, status
local message, epoch, offset = ARGV[3], ARGV[5], tonumber(ARGV[6])
local mailbox = redis.call('HMGET', M, 'id', 'ep', 'en')
local same = mailbox[2] == epoch

-- What is known of another epoch (the topic was made anew) says nothing about this one.
if ARGV[7] == epoch and (not same or tonumber(mailbox[3]) < tonumber(ARGV[8])) then
  return { 'lost' }
end
drop_pending(message)
if same and offset <= tonumber(mailbox[3]) then
  return { 'already' }
end

if not mailbox[1] or (not same and mailbox[2] ~= '') then
  redis.call('DEL', M, MZ, MF)
  redis.call('HSET', M, 'id', ARGV[2], 'ep', epoch, 'fl', ARGV[6], 'bytes', '0')
elseif not same then
  redis.call('HSET', M, 'ep', epoch, 'fl', ARGV[6])
end
-- Also for a message that was delivered at another position: the relay names this one as known next.
redis.call('HSET', M, 'en', ARGV[6])

local place = epoch .. '.' .. ARGV[6]
local _, position, forgotten = outcome(message)
if position and position ~= place then
  touch_mailbox()
  return { 'already' }
end

redis.call('HSET', P .. 'o:' .. message, 'p', place)
redis.call('DEL', P .. 'a:' .. message, P .. 't:' .. message)
redis.call('SREM', P .. 'as', message)
local channel = TERMINAL
if ARGV[9] == '1' then
  channel = LIVE
end
if forgotten then
  -- Its end is still told, once, and nothing of it is kept.
  redis.call('PEXPIRE', P .. 'o:' .. message, int(DEDUP_TTL))
  touch_mailbox()
  return { 'published', publish(channel, ARGV[10], ARGV[1]) }
end
keep_outcome(message, ARGV[10])
if ARGV[4] ~= '' then
  put_turn(ARGV[4], message, false, ARGV[11], ARGV[12])
end

local size = #ARGV[10]
redis.call('ZADD', MZ, ARGV[6], ARGV[6] .. ':' .. int(now) .. ':' .. size .. ':' .. message .. ' ' .. ARGV[4])
redis.call('HSET', MF, ARGV[6], ARGV[10])
redis.call('HINCRBY', M, 'bytes', size)
trim_mailbox()
touch_mailbox()
return { 'published', publish(channel, ARGV[10], ARGV[1]) }
