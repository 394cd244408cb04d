from chatbot_sft.cli import main

if __name__ == "__main__":
    main()
