-- Number of model tokens that a user has used today, per UTC day in `u:DAY`.
local DAY = 86400000
local TODAY_KEY = PREFIX .. 'u:' .. int(math.floor(now / DAY))

local function count_tokens(tokens)
  if DAILY_TOKENS > 0 and tonumber(tokens) > 0 then
    redis.call('INCRBY', TODAY_KEY, tokens)
    redis.call('PEXPIRE', TODAY_KEY, int(2 * DAY))
  end
end
