-- Renews the expiry of an answer in flight. The text is renewed together with the answer's hash: a
-- text that outlived the hash would become the beginning of the next attempt's text.
local function renew_answer(message)
  renew_expiry(answer_key(message), PENDING_TTL)
  renew_expiry(text_key(message), PENDING_TTL)
  renew_expiry(ANSWERS_KEY, PENDING_TTL)
end
