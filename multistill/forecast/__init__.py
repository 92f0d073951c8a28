"""What a job will take: measured rates times counts, with a low and a high end. No Ray."""
