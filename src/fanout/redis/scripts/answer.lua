-- The text never outlives its answer: another attempt would begin with it.
local function touch_answer(message)
  renew(P .. 'a:' .. message, PENDING_TTL)
  renew(P .. 't:' .. message, PENDING_TTL)
  renew(P .. 'as', PENDING_TTL)
end
