-- ARGV: conversation, turns at most, age of the newest (ms)
local turns, order = P .. 'h:' .. ARGV[1], P .. 'ho:' .. ARGV[1]
local limit, young = tonumber(ARGV[2]), '(' .. int(now_us - HISTORY_TTL * 1000)
local out, count, start = {}, 0, 0
while count < limit do
  local page = redis.call('ZREVRANGEBYSCORE', order, '+inf', young, 'WITHSCORES', 'LIMIT', start, limit)
  if #page == 0 then
    break
  end
  for i, turn in ipairs(turns_of(turns, page)) do
    if turn and string.byte(turn) ~= FAILED and count < limit then
      if count == 0 and tonumber(page[2 * i]) < now_us - tonumber(ARGV[3]) * 1000 then
        return out
      end
      count = count + 1
      out[3 * count - 2], out[3 * count - 1], out[3 * count] = page[2 * i - 1], turn, page[2 * i]
    end
  end
  start = start + limit
end
return out
