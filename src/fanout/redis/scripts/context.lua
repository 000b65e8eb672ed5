-- Returns the newest turns that have not failed, at most `limit`, newest first, as a flat list of
-- message, turn and time. The turns have no parts, because no prompt contains them. Returns an
-- empty list if the newest of these turns is older than `max_newest_turn_age` (ms).
local function context(conversation, limit, max_newest_turn_age)
  local turns_key, order_key = PREFIX .. 'h:' .. conversation, PREFIX .. 'ho:' .. conversation
  local unexpired = '(' .. int(now_us - HISTORY_TTL * 1000)
  local found, count, start = {}, 0, 0
  while count < limit do
    local page = redis.call('ZREVRANGEBYSCORE', order_key, '+inf', unexpired, 'WITHSCORES',
      'LIMIT', start, limit)
    if #page == 0 then
      break
    end
    for i, turn in ipairs(load_turns(turns_key, page)) do
      if turn and string.byte(turn) ~= FAILED and count < limit then
        if count == 0 and tonumber(page[2 * i]) < now_us - tonumber(max_newest_turn_age) * 1000 then
          return found
        end
        count = count + 1
        found[3 * count - 2], found[3 * count - 1], found[3 * count] =
          page[2 * i - 1], without_parts(turn), page[2 * i]
      end
    end
    start = start + limit
  end
  return found
end
