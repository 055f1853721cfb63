"""What a conversation remembers."""

import dataclasses

from localr1.chat.transcript import Message, Transcript


def test_a_conversation_in_order() -> None:
    transcript = Transcript("Be brief.")
    transcript.add_user("2 + 2?")
    transcript.add_assistant("4")
    transcript.add_user("And 3?")
    expected = [("system", "Be brief."), ("user", "2 + 2?"), ("assistant", "4"), ("user", "And 3?")]
    assert [(message.role, message.content) for message in transcript.messages] == expected
    assert len(transcript.messages) == 4


def test_messages_are_plain_data_that_can_be_saved_and_read_back() -> None:
    transcript = Transcript()
    transcript.add_user("hi")
    saved = [dataclasses.asdict(message) for message in transcript.messages]
    assert saved == [{"role": "user", "content": "hi"}]
    assert tuple(Message(**record) for record in saved) == transcript.messages


def test_messages_are_a_snapshot() -> None:
    transcript = Transcript()
    before = transcript.messages
    transcript.add_user("hi")
    assert before == ()


def test_clear_keeps_the_system_prompt() -> None:
    transcript = Transcript("Be brief.")
    transcript.add_user("hi")
    transcript.add_assistant("Hello.")
    transcript.clear()
    assert transcript.messages == (Message("system", "Be brief."),)


def test_an_empty_system_prompt_is_one() -> None:
    assert Transcript("").messages == (Message("system", ""),)
    assert Transcript().messages == ()


def test_turns_can_be_put_back_as_they_were() -> None:
    transcript = Transcript("Be brief.")
    transcript.add_user("hi")
    transcript.add_assistant("Hello.")
    before = transcript.turns
    transcript.add_user("too long")
    transcript.drop_oldest_turn()
    transcript.restore(before)
    assert [message.content for message in transcript.messages] == ["Be brief.", "hi", "Hello."]


def test_the_oldest_turn_goes_first_and_the_last_question_never() -> None:
    transcript = Transcript("system")
    for number in range(3):
        transcript.add_user(f"question {number}")
        transcript.add_assistant(f"answer {number}")
    transcript.add_user("last")
    assert transcript.drop_oldest_turn()
    assert [message.content for message in transcript.messages][:2] == ["system", "question 1"]
    assert transcript.drop_oldest_turn()
    assert transcript.drop_oldest_turn()
    assert [message.content for message in transcript.messages] == ["system", "last"]
    assert not transcript.drop_oldest_turn()
    assert [message.content for message in transcript.messages] == ["system", "last"]
