-- A turn of a conversation, as one value: status, length of the question (`-` for none), `:`,
-- question, answer.
local FAILED = string.byte('f')

-- The turns of a page (with scores), `false` where there is none. In chunks, since Lua can't pass
-- any number of arguments.
local function turns_of(turns, page)
  local found = {}
  for first = 1, #page, 2000 do
    local messages = {}
    for i = first, math.min(first + 1998, #page), 2 do
      messages[#messages + 1] = page[i]
    end
    for _, turn in ipairs(redis.call('HMGET', turns, unpack(messages))) do
      found[#found + 1] = turn
    end
  end
  return found
end

-- The state of a conversation (history.lua): its newest turn, and its time, which is moved where any
-- turn is changed. Empty where there is none.
local function history_mark(conversation)
  local last = redis.call('ZREVRANGE', P .. 'ho:' .. conversation, 0, 0, 'WITHSCORES')
  return last[1] and last[1] .. ' ' .. last[2] or ''
end
