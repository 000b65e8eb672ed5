-- ARGV: conversation after which (or empty), conversations at most
local start, limit = 0, tonumber(ARGV[2])
if ARGV[1] ~= '' then
  local rank = redis.call('ZREVRANK', P .. 'hl', ARGV[1])
  if not rank then
    return {}
  end
  start = rank + 1
end
local out = {}
if limit > 0 then
  local page = redis.call('ZREVRANGE', P .. 'hl', start, start + limit - 1, 'WITHSCORES')
  for i = 1, #page, 2 do
    local conversation, at = page[i], tonumber(page[i + 1])
    if at <= now - HISTORY_TTL then
      break
    end
    local young = '(' .. int(now_us - HISTORY_TTL * 1000)
    local turns = redis.call('ZCOUNT', P .. 'ho:' .. conversation, young, '+inf')
    out[#out + 1] = { conversation, int(turns), int(at) }
  end
end
return out
