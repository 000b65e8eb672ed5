-- `conversations`. ARGV: conversation behind which the list begins (empty: from the start), maximum
-- number of conversations
local after, limit = ARGV[1], tonumber(ARGV[2])
local start = 0
if after ~= '' then
  local rank = redis.call('ZREVRANK', PREFIX .. 'hl', after)
  if not rank then
    return {}
  end
  start = rank + 1
end
local entries = {}
if limit > 0 then
  local unexpired = '(' .. int(now_us - HISTORY_TTL * 1000)
  local page = redis.call('ZREVRANGE', PREFIX .. 'hl', start, start + limit - 1, 'WITHSCORES')
  for i = 1, #page, 2 do
    local conversation, updated = page[i], tonumber(page[i + 1])
    if updated <= now - HISTORY_TTL then
      break
    end
    local count = redis.call('ZCOUNT', PREFIX .. 'ho:' .. conversation, unexpired, '+inf')
    entries[#entries + 1] = { conversation, int(count), int(updated) }
  end
end
return entries
