-- Counts the model tokens that a user has used. `u:DAY` is the number of a UTC day, counted from
-- the Unix epoch.

-- Length of a day in milliseconds.
local DAY = 86400000
local TODAY_KEY = PREFIX .. 'u:' .. int(math.floor(now / DAY))

-- Adds the tokens of an answer to the number of today, if users have a limit.
local function count_tokens(tokens)
  if DAILY_TOKENS > 0 and tonumber(tokens) > 0 then
    redis.call('INCRBY', TODAY_KEY, tokens)
    redis.call('PEXPIRE', TODAY_KEY, int(2 * DAY))
  end
end
