-- ARGV: conversation, turns at most, age of the newest (ms)
local turns, order = P .. 'h:' .. ARGV[1], P .. 'ho:' .. ARGV[1]
local limit = tonumber(ARGV[2])
local out, start = {}, 0
while #out < limit do
  local page = redis.call('ZREVRANGE', order, start, start + limit - 1, 'WITHSCORES')
  if #page == 0 then
    break
  end
  for i = 1, #page, 2 do
    local message, at = page[i], tonumber(page[i + 1])
    if at <= now_us - HISTORY_TTL * 1000 then
      return out
    end
    local turn = redis.call('HMGET', turns, 's:' .. message, 'q:' .. message, 'a:' .. message)
    if turn[1] and turn[1] ~= 'f' and #out < limit then
      if #out == 0 and at < now_us - tonumber(ARGV[3]) * 1000 then
        return out
      end
      out[#out + 1] = { message, turn[1], turn[2], turn[3], int(math.floor(at / 1000)) }
    end
  end
  start = start + limit
end
return out
