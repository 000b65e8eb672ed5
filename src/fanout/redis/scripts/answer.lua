-- The answer in flight of a message, for the worker that generates it.

-- Returns the answer's fields stream, parts and until, or nil and the reason for which this owner
-- and attempt may not write to the answer.
local function writable_answer(message, owner, attempt)
  if redis.call('EXISTS', outcome_key(message), PREFIX .. 'c:' .. message) > 0 then
    local frame, position = outcome(message)
    return nil, (frame or position) and 'fenced' or 'cancelled'
  end
  local fields = redis.call('HMGET', answer_key(message),
    'owner', 'attempt', 'stream', 'parts', 'until')
  if not fields[1] then
    return nil, 'lost'
  end
  if fields[1] ~= owner or fields[2] ~= attempt then
    return nil, 'fenced'
  end
  return { stream = fields[3], parts = tonumber(fields[4]), lease_until = tonumber(fields[5]) }
end

-- Renews the expiry of an answer in flight and of the pieces of its stream.
local function renew_answer(message, stream)
  renew_expiry(answer_key(message), PENDING_TTL)
  renew_expiry(stream_key(message, stream), PENDING_TTL)
  renew_expiry(ANSWERS_KEY, PENDING_TTL)
end
