-- What a conversation's history is to the model.

-- The newest turns that have not failed, at most `limit`, the newest first: message, turn, time.
-- None where the newest is older than `max_age` (ms).
local function context(conversation, limit, max_age)
  local turns, order = P .. 'h:' .. conversation, P .. 'ho:' .. conversation
  local young = '(' .. int(now_us - HISTORY_TTL * 1000)
  local out, count, start = {}, 0, 0
  while count < limit do
    local page = redis.call('ZREVRANGEBYSCORE', order, '+inf', young, 'WITHSCORES', 'LIMIT', start, limit)
    if #page == 0 then
      break
    end
    for i, turn in ipairs(turns_of(turns, page)) do
      if turn and string.byte(turn) ~= FAILED and count < limit then
        if count == 0 and tonumber(page[2 * i]) < now_us - tonumber(max_age) * 1000 then
          return out
        end
        count = count + 1
        out[3 * count - 2], out[3 * count - 1], out[3 * count] = page[2 * i - 1], turn, page[2 * i]
      end
    end
    start = start + limit
  end
  return out
end
