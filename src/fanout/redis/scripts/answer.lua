-- Renews the expiry of an answer in flight. The text must never outlive its answer, because the
-- next attempt would begin with it.
local function renew_answer(message)
  renew_expiry(answer_key(message), PENDING_TTL)
  renew_expiry(text_key(message), PENDING_TTL)
  renew_expiry(ANSWERS_KEY, PENDING_TTL)
end
