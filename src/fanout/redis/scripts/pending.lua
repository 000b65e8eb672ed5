-- What is pending: by message, when it was noted (microseconds) and its entry.
local function drop_pending(message)
  redis.call('HDEL', PENDING_KEY, message)
end

-- The entry, unless nothing has ended it in all that time, and when it was noted.
local function fresh(value)
  local at, entry = string.match(value, '^(%d+) (.*)$')
  at = tonumber(at)
  if at > now_us - PENDING_TTL * 1000 then
    return entry, at
  end
end

local function is_pending(message)
  local value = redis.call('HGET', PENDING_KEY, message)
  return value and fresh(value) ~= nil
end

-- All of them, the first first: `message`, `entry`. What is too old is dropped.
local function all_pending()
  local all, found = redis.call('HGETALL', PENDING_KEY), {}
  for i = 1, #all, 2 do
    local entry, at = fresh(all[i + 1])
    if entry then
      found[#found + 1] = { message = all[i], entry = entry, at = at }
    else
      drop_pending(all[i])
    end
  end
  table.sort(found, function(a, b)
    return a.at < b.at or (a.at == b.at and a.message < b.message)
  end)
  return found
end
