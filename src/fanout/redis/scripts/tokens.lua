-- What a day has cost a user, in tokens: `u:`.
local DAY = 86400000
local TODAY = P .. 'u:' .. int(math.floor(now / DAY))

local function count_tokens(tokens)
  if DAILY > 0 and tonumber(tokens) > 0 then
    redis.call('INCRBY', TODAY, tokens)
    redis.call('PEXPIRE', TODAY, int(2 * DAY))
  end
end
