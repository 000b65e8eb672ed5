-- `history`. ARGV: conversation, message before whose turn to read (empty: from the newest turn),
-- maximum number of turns. Returns `gone` if that message has no turn, otherwise the turns, newest
-- first.
local turns_key, order_key = PREFIX .. 'h:' .. ARGV[1], PREFIX .. 'ho:' .. ARGV[1]
local before, limit = ARGV[2], tonumber(ARGV[3])
local expired_us = now_us - HISTORY_TTL * 1000
local upper_bound = '+inf'
if before ~= '' then
  local at = redis.call('ZSCORE', order_key, before)
  if not at or tonumber(at) <= expired_us then
    return { 'gone' }
  end
  upper_bound = '(' .. at
end
local found = {}
if limit > 0 then
  local page = redis.call('ZREVRANGEBYSCORE', order_key, upper_bound, '(' .. int(expired_us),
    'WITHSCORES', 'LIMIT', 0, limit)
  for i, turn in ipairs(load_turns(turns_key, page)) do
    if turn then
      found[#found + 1], found[#found + 2], found[#found + 3] = page[2 * i - 1], turn, page[2 * i]
    end
  end
end
return { 'turns', found }
