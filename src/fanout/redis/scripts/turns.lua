-- ARGV: conversation, message before which (or empty), turns at most
local turns, order = P .. 'h:' .. ARGV[1], P .. 'ho:' .. ARGV[1]
local too_old = now_us - HISTORY_TTL * 1000
local below, limit = '+inf', tonumber(ARGV[3])
if ARGV[2] ~= '' then
  local at = redis.call('ZSCORE', order, ARGV[2])
  if not at or tonumber(at) <= too_old then
    return { 'gone' }
  end
  below = '(' .. at
end
local out = {}
if limit > 0 then
  local page = redis.call('ZREVRANGEBYSCORE', order, below, '(' .. int(too_old), 'WITHSCORES', 'LIMIT', 0, limit)
  for i, turn in ipairs(turns_of(turns, page)) do
    if turn then
      out[#out + 1], out[#out + 2], out[#out + 3] = page[2 * i - 1], turn, page[2 * i]
    end
  end
end
return { 'turns', out }
