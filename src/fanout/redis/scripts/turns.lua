-- ARGV: conversation, message before which (or empty), turns at most
local turns, order = P .. 'h:' .. ARGV[1], P .. 'ho:' .. ARGV[1]
local too_old = now_us - HISTORY_TTL * 1000
local start, limit = 0, tonumber(ARGV[3])
if ARGV[2] ~= '' then
  local at = redis.call('ZSCORE', order, ARGV[2])
  if not at or tonumber(at) <= too_old then
    return { 'gone' }
  end
  start = redis.call('ZREVRANK', order, ARGV[2]) + 1
end
local out = {}
if limit > 0 then
  local page = redis.call('ZREVRANGE', order, start, start + limit - 1, 'WITHSCORES')
  for i = 1, #page, 2 do
    local message, at = page[i], tonumber(page[i + 1])
    if at <= too_old then
      break
    end
    local turn = redis.call('HMGET', turns, 's:' .. message, 'q:' .. message, 'a:' .. message)
    out[#out + 1] = { message, turn[1], turn[2], turn[3], int(math.floor(at / 1000)) }
  end
end
return { 'turns', out }
