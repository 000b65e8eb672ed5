-- `renew`. ARGV: message, owner, attempt, number of parts that the caller knows to be stored, known
-- length of the last of them, number of pieces that the caller expects
local message, known_parts, known_length = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
-- Number of pieces above which a renewal joins the pieces of each part.
local MAX_PIECES = 256

local answer, refusal = writable_answer(message, ARGV[2], ARGV[3])
if not answer then
  return { refusal }
end
local key = stream_key(message, answer.stream)
local count = redis.call('LLEN', key)
local parts
-- Reading all pieces takes long. They are complete if there are as many as expected and the last one
-- is the last one that the caller knows: a server that rolled back has fewer, and a repeat of an
-- older piece ends earlier.
local is_complete = known_parts == 0 or (count >= tonumber(ARGV[6])
  and is_end(redis.call('LINDEX', key, -1), known_parts - 1, known_length))
if not is_complete or count > MAX_PIECES then
  parts = load_parts(key)
  local last = parts[known_parts]
  if known_parts > 0 and (not last or last.length < known_length) then
    return { 'lost' }
  end
end
redis.call('HSET', answer_key(message), 'until', int(now + LEASE))
if needs_renewal(answer.lease_until - LEASE, PENDING_TTL) then
  renew_answer(message, answer.stream)
end
if parts and count > #parts then
  redis.call('DEL', key)
  for i, part in ipairs(parts) do
    redis.call('RPUSH', key, '+' .. (i - 1) .. ':' .. int(part.length) .. ':' .. part.previous_end
      .. ':' .. part.header .. part_text(part))
  end
  renew_expiry(key, PENDING_TTL)
  count = #parts
end
return { 'confirmed', count }
